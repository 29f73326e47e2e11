"""What agents say to each other and how it becomes tokens: tags, prompts, chats, encoding. No torch, no transformers."""
