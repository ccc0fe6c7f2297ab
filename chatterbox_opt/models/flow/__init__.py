"""models.flow"""
