package main

import (
	"context"
	"encoding/hex"

	staddle "staddle.dev/interop/gen/staddle/v1"
)

// Small, so that even a small backup has several pages.
const pageSize = 5

// list prints a dataset's backups, newest first, and then the entries of the newest one.
func list(ctx context.Context, client staddle.StaddleServiceClient, dataset string) error {
	request := &staddle.ListBackupsRequest{Dataset: dataset, PageSize: pageSize}
	for {
		page, err := client.ListBackups(ctx, request)
		if err != nil {
			return err
		}
		for _, each := range page.GetBackups() {
			err := printLine(map[string]any{
				"backup": each.GetId(), "number": each.GetNumber(), "entries": each.GetEntryCount(), "bytes": each.GetDataBytes(),
			})
			if err != nil {
				return err
			}
		}
		if page.GetNextPageToken() == "" {
			break
		}
		request.PageToken = page.GetNextPageToken()
	}
	return listEntries(ctx, client, dataset)
}

func listEntries(ctx context.Context, client staddle.StaddleServiceClient, dataset string) error {
	request := &staddle.ListEntriesRequest{Dataset: dataset, Recursive: true, PageSize: pageSize}
	for {
		page, err := client.ListEntries(ctx, request)
		if err != nil {
			return err
		}
		for _, each := range page.GetEntries() {
			err := printLine(map[string]any{
				"path_hex":   hex.EncodeToString([]byte(pathOf(each.GetPath(), each.GetRawPath()))),
				"type":       each.GetType().String(),
				"bytes":      each.GetContent().GetSizeBytes(),
				"content_id": hex.EncodeToString(each.GetContent().GetContentId()),
			})
			if err != nil {
				return err
			}
		}
		if page.GetNextPageToken() == "" {
			return nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// pathOf is a path from the two fields it may be in. Go's strings hold any bytes.
func pathOf(text string, bytes []byte) string {
	if len(bytes) > 0 {
		return string(bytes)
	}
	return text
}
