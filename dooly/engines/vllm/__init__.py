"""The vLLM adapter: tracing a model, running the reduced engine, running the whole engine."""
