"""Episodes shown to people: on a terminal, as an HTML page. No torch."""
