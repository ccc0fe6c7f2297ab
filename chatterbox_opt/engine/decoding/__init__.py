"""T3: sequences in decode slots, from prompts to speech tokens.

decoder.py        which sequences are in the slots, and recovery from errors of a step
decode.py         the decode loop, and eager steps
decode_graphs.py  steps that are captured as CUDA graphs or compiled
"""
