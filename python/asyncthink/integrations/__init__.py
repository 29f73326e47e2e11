"""Adapters to other libraries. Each module is imported only by those who use its library."""
