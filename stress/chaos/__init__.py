"""Real runs, broken on purpose from outside: killed, stopped, hung, damaged, out of disk, with numbers gone wrong."""
