"""Voice conversion: the tokens of a recording, rendered with another voice.

request.py  what is to be converted
states.py   from a recording to its request's state
engine.py   what an engine can do with recordings

How a long recording is cut into windows, and joined again, is in engine/windows.py.
"""
