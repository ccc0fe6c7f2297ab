"""Speech tokens to audio: of whole sequences, and of sequences that T3 is still decoding.

renderer.py   runs flow and vocoder, on a thread or not, and recovers from errors
work.py       what it runs: sequences that T3 has finished
hops.py       what it runs: parts of sequences that T3 has not finished
noise.py      random numbers that do not depend on the parts
"""
