"""The same endpoints behind HTTP, as Databricks Model Serving and the OpenAI API have them (contract B, D, G)."""
