"""The engine: requests to audio (scheduler, decode loop, pipeline, retries, device probe).

May import every package except ``provider``, ``bench``, ``batch`` and ``cli``, which build on it.
"""
