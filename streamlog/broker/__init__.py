"""The only place where rules meet bytes: partitions, coordinators, brokers, the cluster and its runner."""
