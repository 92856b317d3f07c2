"""How fast, beside what a user would take otherwise. python -m benchmarks peers | quantizer | trainer | data"""
