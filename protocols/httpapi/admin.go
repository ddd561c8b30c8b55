package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

func (a *api) registerDomains() {
	reg := a.g.deps.Registrar
	question(a, huma.Operation{OperationID: "list-domains", Method: http.MethodGet, Path: "/v1/domains", Tags: []string{"domains"}, Summary: "List domains"},
		func(ctx context.Context, c *call, _ *struct{ ReadInput }) (*listOutput[*domainView], error) {
			found, err := reg.Domains(ctx, c.tenant())
			if err != nil {
				return nil, err
			}
			items := make([]*domainView, len(found))
			for i := range found {
				items[i] = domainViewOf(&found[i])
			}
			return page(items, c.path, nil, ""), nil
		})

	question(a, huma.Operation{OperationID: "get-domain", Method: http.MethodGet, Path: "/v1/domains/{id}", Tags: []string{"domains"},
		Summary: "Get a domain", Responses: notModified()},
		func(ctx context.Context, c *call, in *struct {
			DomainPath
			TagInput
			ReadInput
		}) (*taggedOutput[domainView], error) {
			id, err := in.domain()
			if err != nil {
				return nil, err
			}
			d, err := reg.Domain(ctx, c.tenant(), id)
			if err != nil {
				return nil, err
			}
			return tagged(domainViewOf(d), d.Revision, in.IfNoneMatch), nil
		})

	operation(a, huma.Operation{OperationID: "put-domain", Method: http.MethodPut, Path: "/v1/domains/{id}", Tags: []string{"domains"},
		Summary: "Create or change a domain", Description: "Takes JSON or YAML. What a GET answered can be changed and put back.",
		Responses: madeOrChanged(a, schemaOf[domainView](a))}, a.putDomain)
	a.alsoYAML("/v1/domains/{id}")

	operation(a, huma.Operation{OperationID: "delete-domain", Method: http.MethodDelete, Path: "/v1/domains/{id}", Tags: []string{"domains"},
		Summary: "Remove a domain; refused while devices belong to it"},
		func(ctx context.Context, c *call, in *struct {
			DomainPath
			Condition
		}) (*struct{}, error) {
			id, err := in.domain()
			if err != nil {
				return nil, err
			}
			revision, err := in.revision(func() (uint64, error) { return domainRevision(ctx, reg, c.tenant(), id) })
			if err != nil {
				return nil, err
			}
			return nil, reg.DeleteDomain(ctx, c.tenant(), id, revision)
		})
}

type putDomainInput struct {
	DomainPath
	Condition
	Body domainView
}

func (a *api) putDomain(ctx context.Context, c *call, in *putDomainInput) (*taggedOutput[domainView], error) {
	reg := a.g.deps.Registrar
	id, err := in.domain()
	if err != nil {
		return nil, err
	}
	want, err := in.Body.domain(c.tenant(), id)
	if err != nil {
		return nil, err
	}
	revision, err := in.revision(func() (uint64, error) { return domainRevision(ctx, reg, c.tenant(), id) })
	if err != nil {
		return nil, err
	}
	d, err := reg.PutDomain(ctx, want, revision)
	if err != nil {
		return nil, err
	}
	return created(domainViewOf(d), d.Revision), nil
}

func domainRevision(ctx context.Context, reg dunlin.Registrar, t dunlin.Tenant, id dunlin.DomainID) (uint64, error) {
	d, err := reg.Domain(ctx, t, id)
	if err != nil {
		return 0, err
	}
	return d.Revision, nil
}

func (a *api) registerPlugins() {
	reg := a.g.deps.Registrar
	question(a, huma.Operation{OperationID: "list-plugins", Method: http.MethodGet, Path: "/v1/plugins", Tags: []string{"plugins"}, Summary: "List plugins"},
		func(ctx context.Context, c *call, _ *struct{ ReadInput }) (*listOutput[*pluginView], error) {
			found, err := reg.Plugins(ctx, c.tenant())
			if err != nil {
				return nil, err
			}
			items := make([]*pluginView, len(found))
			for i := range found {
				items[i] = pluginViewOf(&found[i])
			}
			return page(items, c.path, nil, ""), nil
		})

	question(a, huma.Operation{OperationID: "get-plugin", Method: http.MethodGet, Path: "/v1/plugins/{name}", Tags: []string{"plugins"},
		Summary: "Get a plugin's active version", Responses: notModified()},
		func(ctx context.Context, c *call, in *struct {
			PluginPath
			TagInput
			ReadInput
		}) (*taggedOutput[pluginView], error) {
			if err := dunlin.ValidatePluginName(in.Name); err != nil {
				return nil, err
			}
			p, err := reg.Plugin(ctx, c.tenant(), in.Name)
			if err != nil {
				return nil, err
			}
			return tagged(pluginViewOf(p), p.Revision, in.IfNoneMatch), nil
		})

	operation(a, huma.Operation{OperationID: "put-plugin", Method: http.MethodPut, Path: "/v1/plugins/{name}", Tags: []string{"plugins"},
		Summary: "Upload a module and make it the plugin's active version", MaxBodyBytes: a.g.cfg.ModuleBytesMax,
		Description: "The module is checked first: size, imports, exports, memory, ABI marker, and a dry run. " +
			"A module that fails is refused with 422: check names what failed, detail says what was found and what to do.",
		Responses: madeOrChanged(a, schemaOf[pluginView](a))}, a.putPlugin)

	operation(a, huma.Operation{OperationID: "delete-plugin", Method: http.MethodDelete, Path: "/v1/plugins/{name}", Tags: []string{"plugins"},
		Summary: "Remove a plugin; refused while a domain's pipeline names it"},
		func(ctx context.Context, c *call, in *struct {
			PluginPath
			Condition
		}) (*struct{}, error) {
			if err := dunlin.ValidatePluginName(in.Name); err != nil {
				return nil, err
			}
			revision, err := in.revision(func() (uint64, error) { return pluginRevision(ctx, reg, c.tenant(), in.Name) })
			if err != nil {
				return nil, err
			}
			return nil, reg.DeletePlugin(ctx, c.tenant(), in.Name, revision)
		})
}

type putPluginInput struct {
	PluginPath
	Condition
	Activate    bool   `query:"activate" default:"true" doc:"false: the module is kept as a version, and does not run yet"`
	Reason      string `query:"reason" maxLength:"1024" doc:"Kept with the activation"`
	Source      string `query:"source" maxLength:"512" doc:"Where it comes from; default upload"`
	Signature   string `header:"Dunlin-Signature" doc:"A minisign signature of the module: the .minisig file in base64"`
	Key         string `header:"Dunlin-Key" doc:"The minisign public key to verify it with; default: one that a domain of the tenant trusts"`
	ContentType string `header:"Content-Type" hidden:"true"`
	RawBody     []byte `contentType:"application/wasm"`
}

func (a *api) putPlugin(ctx context.Context, c *call, in *putPluginInput) (*taggedOutput[pluginView], error) {
	reg := a.g.deps.Registrar
	if err := dunlin.ValidatePluginName(in.Name); err != nil {
		return nil, err
	}
	if mt := mediaTypeOf(in.ContentType); mt != "application/wasm" && mt != "application/octet-stream" {
		return nil, fmt.Errorf("%w: Content-Type %s; a module is application/wasm (with curl: -H 'Content-Type: application/wasm' --data-binary @file.wasm)",
			dunlin.ErrFormat, quoted(in.ContentType))
	}
	revision, err := in.revision(func() (uint64, error) { return pluginRevision(ctx, reg, c.tenant(), in.Name) })
	if err != nil {
		return nil, err
	}
	// huma takes the buffer back after this call; the module stays.
	module := slices.Clone(in.RawBody)
	if a.g.deps.Plugins == nil {
		p, err := reg.PutPlugin(ctx, c.tenant(), in.Name, module, revision)
		if err != nil {
			return nil, err
		}
		return created(pluginViewOf(p), p.Revision), nil
	}
	set, err := in.settings(c.principal.ID, revision)
	if err != nil {
		return nil, err
	}
	p, err := a.g.deps.Plugins.BringVersion(ctx, c.tenant(), set, module)
	if err != nil {
		return nil, err
	}
	return created(pluginViewOf(p), p.Revision), nil
}

func pluginRevision(ctx context.Context, reg dunlin.Registrar, t dunlin.Tenant, name string) (uint64, error) {
	p, err := reg.Plugin(ctx, t, name)
	if err != nil {
		return 0, err
	}
	return p.Revision, nil
}

// putCredentialInput's body may be left out: the node then makes the secret.
type putCredentialInput struct {
	CredentialPath
	Body *struct {
		Domain dunlin.DomainID `json:"domain,omitempty" doc:"Where a device that is not registered yet belongs; a gateway's reach"`
		Secret string          `json:"secret,omitempty" maxLength:"256" doc:"Left out: the node makes one"`
	}
}

// secretView is the only answer that ever shows a secret.
type secretView struct {
	ID     string                `json:"id"`
	Kind   dunlin.CredentialKind `json:"kind" enum:"device,gateway,application,operator"`
	Domain dunlin.DomainID       `json:"domain,omitempty"`
	Secret string                `json:"secret" doc:"Shown this once: the node keeps only its hash. The password of a device, the bearer token of others"`
}

type secretOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         secretView
}

func (a *api) registerCredentials() {
	reg := a.g.deps.Registrar
	question(a, huma.Operation{OperationID: "list-credentials", Method: http.MethodGet, Path: "/v1/credentials", Tags: []string{"credentials"},
		Summary: "List credentials, without their secrets"},
		func(ctx context.Context, c *call, _ *struct{ ReadInput }) (*listOutput[credentialView], error) {
			found, err := reg.Credentials(ctx, c.tenant())
			if err != nil {
				return nil, err
			}
			items := make([]credentialView, len(found))
			for i := range found {
				items[i] = credentialViewOf(&found[i])
			}
			return page(items, c.path, nil, ""), nil
		})
	operation(a, huma.Operation{OperationID: "put-credential", Method: http.MethodPut, Path: "/v1/credentials/{kind}/{id}", Tags: []string{"credentials"},
		Summary: "Make or replace a credential; its secret is shown this once"},
		func(ctx context.Context, c *call, in *putCredentialInput) (*secretOutput, error) {
			cred := dunlin.Credential{Tenant: c.tenant(), ID: in.ID, Kind: dunlin.CredentialKind(in.Kind)}
			secret := ""
			if in.Body != nil {
				cred.Domain, secret = in.Body.Domain, in.Body.Secret
			}
			secret, err := reg.PutCredential(ctx, cred, secret)
			if err != nil {
				return nil, err
			}
			return &secretOutput{CacheControl: "no-store", Body: secretView{ID: cred.ID, Kind: cred.Kind, Domain: cred.Domain, Secret: secret}}, nil
		})
	operation(a, huma.Operation{OperationID: "delete-credential", Method: http.MethodDelete, Path: "/v1/credentials/{kind}/{id}", Tags: []string{"credentials"},
		Summary: "Remove a credential"},
		func(ctx context.Context, c *call, in *CredentialPath) (*struct{}, error) {
			return nil, reg.DeleteCredential(ctx, c.tenant(), dunlin.CredentialKind(in.Kind), in.ID)
		})
}

type versionOutput struct {
	Body versionView
}

type versionView struct {
	Version
	API    string `json:"api" doc:"Version of this API"`
	Tenant string `json:"tenant" doc:"Whose data the caller sees"`
}

func (a *api) registerVersion() {
	operation(a, huma.Operation{OperationID: "get-version", Method: http.MethodGet, Path: "/v1/version", Tags: []string{"node"}, Summary: "Say what runs"},
		func(_ context.Context, c *call, _ *struct{}) (*versionOutput, error) {
			return &versionOutput{Body: versionView{Version: a.g.cfg.Version, API: "v1", Tenant: string(c.tenant())}}, nil
		})
}
