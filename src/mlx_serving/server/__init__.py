"""The HTTP server: OpenAI's API, health and administration, in front of any `ports.ServingEngine`."""
