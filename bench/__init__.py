"""The benchmark: sniproxy side by side with nginx, HAProxy and Envoy. See README.md beside this file."""
