"""The protocol in text and tokens: tags, parser, prompts, chat templates, encoding. No torch, no transformers."""
