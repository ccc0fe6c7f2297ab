"""models.t3"""
