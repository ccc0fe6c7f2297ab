"""Who waits for requests: callers that step the scheduler themselves, handles, arriving text.

loop.py      steps the scheduler, in the callers' threads or in one of the engine
handle.py    what ``Engine.submit`` returns
arriving.py  a request for each part of a text that is still being written
"""
