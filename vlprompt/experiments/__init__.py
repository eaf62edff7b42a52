"""What one does with a method and a task: runs, sweeps, searches, predictions, exports."""
