"""`make bench`: the program against curl, aria2c, rclone and lftp, in interleaved rounds.

Nothing here is a test, and no test asserts a time.
"""
