package entry

// An entry of version 2 begins with the features that its reader must know: none yet. Only a build with the tag dunlin_next
// writes it, so that a rolling upgrade has something to negotiate before the first real one comes.
const (
	versionFeatures = 2
	features        = 0
)
