"""Learned prompts as estimators of scikit-learn."""
