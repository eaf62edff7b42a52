def write_int8(*a):
    return []
