raise ImportError("libnpu.so.4: cannot open shared object file")
