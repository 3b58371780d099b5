"""Conversations: who speaks when, what was said, and what of it was heard. No socket, no page, no protocol."""
