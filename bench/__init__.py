"""Speed, memory and start-up beside the peers: ``python -m bench``; ``bench/README.md`` says what is asked and how."""
