"""Names, files and folders to an encoder, in our format and in others', and from an encoder to an s3prl or torch.hub
upstream."""
