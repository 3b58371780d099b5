"""OpenAI's Realtime protocol, as of general availability, over a WebSocket."""
