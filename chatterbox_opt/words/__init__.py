"""When each word is heard: from T3's attention to times, and to caption files.

Nothing here runs unless a request asks for word times (``Request.timestamps``).
"""
