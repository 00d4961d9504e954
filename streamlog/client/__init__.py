"""What users hold: Cluster, Topic, Partition, Producer, Consumer and ConsumerGroup."""
