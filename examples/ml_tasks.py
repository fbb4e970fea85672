"""Three ML tasks from a Trio program:  RABBITMQ_URL=amqp://user:password@localhost/ python examples/ml_tasks.py"""

import trio

from warrener.ml import MLProducer, Transcribe, TranscribeContent


async def main() -> None:
    async with MLProducer() as ml:
        summary = await ml.summarize(share_id="42", text="A long article …", style="bullets")
        record = Transcribe(share_id="42", content=TranscribeContent(media_url="https://example.org/talk.mp3"))
        transcript = await ml.transcribe(record, backend="local")
        vectors = await ml.embed(share_id="42", text="A long article …", type="article")
    for receipt in (summary, transcript, vectors):
        print("task", receipt.message_id, "confirmed")


if __name__ == "__main__":
    trio.run(main)
