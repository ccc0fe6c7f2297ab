"""models.vocoder"""
