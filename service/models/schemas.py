"""Models on the wire."""

from typing import Literal

from pydantic import BaseModel

from service.models.archive import ModelFile


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None


class DeletedModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class ModelList(BaseModel):
    """All models a caller may use. Clients never ask for a second page of it."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelFileObject(BaseModel):
    name: str
    object: Literal["model.file"] = "model.file"
    bytes: int
    sha256: str

    @classmethod
    def of(cls, file: ModelFile) -> "ModelFileObject":
        return cls(name=file.name, bytes=file.size, sha256=file.sha256)


class ModelFiles(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelFileObject]
