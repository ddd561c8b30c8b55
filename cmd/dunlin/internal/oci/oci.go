// Package oci keeps plugins in OCI registries, as artifacts that other WebAssembly tools understand: a config of type
// application/vnd.wasm.config.v0+json and the module as a layer of type application/wasm (CNCF TAG Runtime, "Wasm OCI Artifact
// layout"), with the minisign signature as a second layer.
//
// Part of the runtime; no compatibility promise before v1.
package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/dunlin-iot/dunlin"
)

// The artifact's media types.
const (
	typeConfig    = "application/vnd.wasm.config.v0+json"
	typeModule    = "application/wasm"
	typeSignature = "application/vnd.dunlin.minisig"
)

// Bounds of what a registry may send.
const (
	manifestBytesMax  = 1 << 20
	moduleBytesMax    = 64 << 20
	signatureBytesMax = 8 << 10
)

// Artifact is a plugin's module as a registry keeps it.
type Artifact struct {
	Name      string // last part of the repository's name
	Reference string // registry/name@digest: what was pulled
	Module    []byte
	Signature string // a .minisig file; "" without one
}

// Options say how to talk to a registry.
type Options struct {
	PlainHTTP bool // without TLS; loopback always is
}

// open returns the repository that a reference names, and its tag or digest. Credentials are those of `docker login`.
func open(ref string, o Options) (*remote.Repository, string, error) {
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %q is no reference to a registry, such as registry.example.com/plugins/rule:1.2.0: %v", dunlin.ErrInvalid, ref, err)
	}
	tag := repo.Reference.Reference
	if tag == "" {
		tag = "latest"
	}
	repo.PlainHTTP = o.PlainHTTP || loopback(repo.Reference.Registry)
	client := &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache()}
	if store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{}); err == nil {
		client.Credential = credentials.Credential(store)
	}
	client.SetUserAgent("dunlin")
	repo.Client = client
	return repo, tag, nil
}

func loopback(registry string) bool {
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Push puts a plugin into a registry under a tag and returns the digest of its manifest.
func Push(ctx context.Context, ref string, a Artifact, o Options) (string, error) {
	repo, tag, err := open(ref, o)
	if err != nil {
		return "", err
	}
	if strings.Contains(tag, ":") {
		return "", fmt.Errorf("%w: push to a tag, not to the digest %s", dunlin.ErrInvalid, tag)
	}
	store := memory.New()
	layers := []ocispec.Descriptor{content.NewDescriptorFromBytes(typeModule, a.Module)}
	layers[0].Annotations = map[string]string{ocispec.AnnotationTitle: a.Name + ".wasm"}
	blobs := [][]byte{a.Module}
	if a.Signature != "" {
		layers = append(layers, content.NewDescriptorFromBytes(typeSignature, []byte(a.Signature)))
		layers[1].Annotations = map[string]string{ocispec.AnnotationTitle: a.Name + ".wasm.minisig"}
		blobs = append(blobs, []byte(a.Signature))
	}
	digests := make([]digest.Digest, len(layers))
	for i := range layers {
		digests[i] = layers[i].Digest
	}
	config, err := json.Marshal(map[string]any{"architecture": "wasm", "os": "wasip1", "layerDigests": digests})
	if err != nil {
		return "", err
	}
	cfg := content.NewDescriptorFromBytes(typeConfig, config)
	for i, d := range append([]ocispec.Descriptor{cfg}, layers...) {
		blob := config
		if i > 0 {
			blob = blobs[i-1]
		}
		if err := store.Push(ctx, d, strings.NewReader(string(blob))); err != nil {
			return "", err
		}
	}
	desc, err := oras.PackManifest(ctx, store, oras.PackManifestVersion1_1, "", oras.PackManifestOptions{ConfigDescriptor: &cfg, Layers: layers,
		// A fixed moment: the same module is the same artifact, whoever pushes it and when.
		ManifestAnnotations: map[string]string{ocispec.AnnotationCreated: "1970-01-01T00:00:00Z"}})
	if err != nil {
		return "", err
	}
	if err := store.Tag(ctx, desc, tag); err != nil {
		return "", err
	}
	if _, err := oras.Copy(ctx, store, tag, repo, tag, oras.DefaultCopyOptions); err != nil {
		return "", fmt.Errorf("push to %s: %w", ref, err)
	}
	return desc.Digest.String(), nil
}

// Pull fetches a plugin by its tag or digest. Digests are checked; whose signature it is is for the caller to see.
func Pull(ctx context.Context, ref string, o Options) (*Artifact, error) {
	repo, tag, err := open(ref, o)
	if err != nil {
		return nil, err
	}
	desc, manifest, err := oras.FetchBytes(ctx, repo, tag, oras.FetchBytesOptions{MaxBytes: manifestBytesMax})
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil || desc.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("%w: %s is a %s, not an OCI artifact of one module", dunlin.ErrInvalid, ref, desc.MediaType)
	}
	a := &Artifact{Name: path.Base(repo.Reference.Repository), Reference: fmt.Sprintf("%s/%s@%s", repo.Reference.Registry, repo.Reference.Repository, desc.Digest)}
	for _, l := range m.Layers {
		switch {
		case l.MediaType == typeModule && a.Module == nil:
			if a.Module, err = fetch(ctx, repo, l, moduleBytesMax); err != nil {
				return nil, fmt.Errorf("pull %s: %w", ref, err)
			}
		case l.MediaType == typeSignature && a.Signature == "":
			sig, err := fetch(ctx, repo, l, signatureBytesMax)
			if err != nil {
				return nil, fmt.Errorf("pull %s: %w", ref, err)
			}
			a.Signature = string(sig)
		}
	}
	if a.Module == nil {
		return nil, fmt.Errorf("%w: %s has no layer of type %s; is it a plugin?", dunlin.ErrInvalid, ref, typeModule)
	}
	return a, nil
}

func fetch(ctx context.Context, repo *remote.Repository, d ocispec.Descriptor, most int64) ([]byte, error) {
	if d.Size < 0 || d.Size > most {
		return nil, fmt.Errorf("%w: a layer has %d bytes, at most %d are allowed", dunlin.ErrTooLarge, d.Size, most)
	}
	return content.FetchAll(ctx, repo, d) // no more than d.Size, and of d.Digest
}
