"""Foundation models: engines that run language and embedding models, and what they need."""
