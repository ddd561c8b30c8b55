package entry

// An entry of version 3 begins with the features that its reader must know: none yet. Only a build with the tag dunlin_next
// writes it, so that a rolling upgrade has something to negotiate before the next real one comes.
const (
	versionFeatures = 3
	features        = 0
)
