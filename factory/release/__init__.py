"""Use a released model from Python, in a chat or with vLLM."""
