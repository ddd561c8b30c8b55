// Package nemesis is the proof with real processes: a cluster of `dunlin server` under load, to which faults are done in
// rounds from a seed, and a ledger of everything that was acknowledged, which is compared with what the cluster kept. What nodes
// say of who owns what, and the hashes of their replicas, are compared with each other.
//
//	devices (CoAP, MQTT)   readers (HTTP)   subscriber (MQTT)      the bench's own network namespace
//	       └──────────────────┬──────────────────┘
//	                     ┌─────────┐
//	                     │ fabric  │  a switch in user space: loses, delays, cuts, by direction
//	                     └┬───┬───┬┘
//	                tun ──┘   │   └── tun
//	               ┌──┴──┐ ┌──┴──┐ ┌──┴──┐
//	               │ n1  │ │ n2  │ │ n3  │    a process, a network namespace and a small file system each
//	               └─────┘ └─────┘ └─────┘
//
// The bench runs in namespaces of its own (network, mounts, processes), so that nothing of it outlives it, however it ends.
// Where they can't be had, nodes stand on loopback addresses and the faults of networks and disks are left out.
//
// Part of the runtime; no compatibility promise before v1.
package nemesis
