"""kernels.cuda"""
