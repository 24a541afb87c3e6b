"""What belongs to a bank's server, in front of vLLM's: keys and tenants, tasks that come and go, prompts as trained."""
