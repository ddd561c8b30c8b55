package replay

import (
	"context"

	"github.com/dunlin-iot/dunlin"
)

func (s *Service) Explain(ctx context.Context, t dunlin.Tenant, alert string) (*dunlin.Explanation, error) {
	return nil, dunlin.ErrUnavailable
}
func (s *Service) serveExplain(ctx context.Context, body []byte) ([]byte, error) {
	return nil, dunlin.ErrUnavailable
}
func (s *Service) serveDrop(ctx context.Context, body []byte) error { return dunlin.ErrUnavailable }
func (s *Service) ReplayLetter(ctx context.Context, t dunlin.Tenant, id string) (string, error) {
	return "", dunlin.ErrUnavailable
}
func (s *Service) DropLetter(ctx context.Context, t dunlin.Tenant, id string) error {
	return dunlin.ErrUnavailable
}
