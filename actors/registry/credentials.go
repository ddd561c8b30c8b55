package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// Credentials implements dunlin.Registrar; by kind and id, without the hashes.
func (r *Registry) Credentials(_ context.Context, t dunlin.Tenant) ([]dunlin.Credential, error) {
	var all []dunlin.Credential
	r.mu.RLock()
	for k, c := range r.mu.credentials {
		if k.tenant == tenant(t) {
			c.Hash = ""
			all = append(all, c)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(all, func(a, b dunlin.Credential) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// PutCredential implements dunlin.Registrar. The secret that it returns is a bearer token if the node made it.
func (r *Registry) PutCredential(ctx context.Context, c dunlin.Credential, secret string) (string, error) {
	c.Tenant = tenant(c.Tenant)
	if err := errors.Join(c.Tenant.Validate(), dunlin.DeviceID(c.ID).Validate()); err != nil {
		return "", fmt.Errorf("credential: %w", err)
	}
	if principalKind(c.Kind) == dunlin.PrincipalNone {
		return "", invalid("credential kind %q is none of device, gateway, application, operator", c.Kind)
	}
	if c.Domain != "" {
		if err := r.domainFor(c.Tenant, c.Domain); err != nil {
			return "", err
		}
	}
	scheme := schemeSlow
	switch {
	case secret == "":
		secret, scheme = makeToken(c.Kind, c.ID), schemeFast
	case len(secret) < secretBytesMin || len(secret) > secretBytesMax:
		return "", invalid("the secret has %d bytes, want %d to %d", len(secret), secretBytesMin, secretBytesMax)
	}
	k := credentialKey{c.Tenant, c.Kind, c.ID}
	if r.credentialsFull(k) {
		return "", invalid("there are %d credentials already", credentialsMax)
	}
	if err := r.auth.slot(ctx); err != nil {
		return "", err
	}
	c.Hash = hashSecret(scheme, []byte(secret))
	<-r.auth.slots
	err := r.update(ctx, dunlin.TableCredentials, k.key(), func(at dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Credential
		if err := revised("credential "+c.ID, old, &was, &was.Revision, dunlin.AnyRevision); err != nil {
			return nil, err
		}
		c.Revision, c.CreatedAt = was.Revision+1, at
		return json.Marshal(c)
	})
	if err != nil {
		return "", fmt.Errorf("put credential %s: %w", c.ID, err)
	}
	return secret, nil
}

func (r *Registry) credentialsFull(k credentialKey) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, known := r.mu.credentials[k]
	return !known && len(r.mu.credentials) >= credentialsMax
}

// DeleteCredential implements dunlin.Registrar.
func (r *Registry) DeleteCredential(ctx context.Context, t dunlin.Tenant, kind dunlin.CredentialKind, id string) error {
	k := credentialKey{tenant(t), kind, id}
	err := r.update(ctx, dunlin.TableCredentials, k.key(), func(_ dunlin.Time, old []byte) ([]byte, error) {
		if old == nil {
			return nil, notFound(string(kind)+" credential", id)
		}
		return nil, nil
	})
	if err != nil {
		return fmt.Errorf("delete credential %s: %w", id, err)
	}
	return nil
}
