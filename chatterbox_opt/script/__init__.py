"""How a text is to be spoken: markup, lexicons, casts. From what a person wrote to spans of words.

No torch, no model: what a span becomes is decided in engine/.
"""
