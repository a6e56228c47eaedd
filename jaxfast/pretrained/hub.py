"""Files of repositories on the Hugging Face hub, from its cache on disk or over the network."""

from pathlib import Path

from jaxfast._extras import need


def fetch(repository: str, name: str) -> Path | None:
    """Return the path of a repository's file in huggingface_hub's cache, downloaded if need be; None if it has none.

    HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Raises ImportError without
    the extra `hub`, FileNotFoundError for an unknown repository, and ConnectionError where the file is not in the cache
    and the hub does not give it.
    """
    hub = need("huggingface_hub", extra="hub", purpose="weights from the Hugging Face hub")
    try:
        return Path(hub.hf_hub_download(repository, name))
    except hub.errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"no repository {repository!r} on the Hugging Face hub, and no such file here: check the name, "
            "or log in (hf auth login) if the repository is private or gated"
        ) from None
    except hub.errors.LocalEntryNotFoundError:
        # the cache remembers which files a repository lacked when it was last asked
        if hub.try_to_load_from_cache(repository, name) is hub._CACHED_NO_EXIST:
            return None
        raise ConnectionError(
            f"the Hugging Face hub cannot be reached, and {name} of {repository!r} is not in its cache: "
            "fetch it once with a connection, or give pretrained=PATH of a .safetensors or .pth file"
        ) from None
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # a download can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"the Hugging Face hub did not give {name} of {repository!r}: {reason}") from None
