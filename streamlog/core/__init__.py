"""The rules of Kafka without I/O: machines that take events and return decisions."""
