"""What every long command needs: processes, batch sizes, signals, logs, progress, disk errors."""
