"""Where the workers of a sweep run: this process, others of this machine, or those of a cluster; one file each."""
