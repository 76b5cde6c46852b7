"""What clients send and get, as OpenAI's API names it. Fields that this server adds are marked as such."""
