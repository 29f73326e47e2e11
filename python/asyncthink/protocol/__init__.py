"""What agents say and how it becomes tokens: tags, prompts, chats, encoding. No torch, no transformers."""
