import Synchronization

/// The steps of one picture, as ``Pipeline/generate(_:previews:)`` and
/// ``Pipeline/resume(_:previews:)`` return them.
///
/// Leaving the loop ends the run, whatever else still refers to the steps. So does cancelling the task
/// that reads them, dropping them unread, or ``cancel()``. Two loops over the same steps share them: each
/// step reaches one of the loops, and the run ends with the last one.
public struct Steps: AsyncSequence, Sendable {
  /// One step.
  public typealias Element = Step
  /// A ``MatryoshkaError`` or a `CancellationError`.
  public typealias Failure = any Error

  private let stream: AsyncThrowingStream<Step, any Error>
  private let run: Run
  private let current = CurrentReader()

  init(_ stream: AsyncThrowingStream<Step, any Error>, _ run: Run) {
    (self.stream, self.run) = (stream, run)
  }

  /// Ends the run after the package at work. Does nothing if the run has ended.
  public func cancel() { run.cancel() }

  /// Starts to read.
  public func makeAsyncIterator() -> AsyncIterator {
    AsyncIterator(inner: stream.makeAsyncIterator(), reader: current.reader(of: run))
  }

  /// Reads the steps. The run ends with the last copy of this value.
  public struct AsyncIterator: AsyncIteratorProtocol {
    var inner: AsyncThrowingStream<Step, any Error>.AsyncIterator
    let reader: Reader

    /// The next step; nil at the end.
    public mutating func next() async throws -> Step? { try await inner.next() }

    /// The next step; nil at the end.
    public mutating func next(
      isolation actor: isolated (any Actor)?
    ) async throws -> Step? {
      try await inner.next(isolation: actor)
    }
  }

  /// Ends the run when nobody reads it any more. A stream alone would do so only when the last
  /// reference to it goes, which a `let` in the same scope delays.
  final class Reader: Sendable {
    private let run: Run

    init(_ run: Run) { self.run = run }

    deinit { run.cancel() }
  }

  /// The reader that iterators share, kept by them alone.
  private final class CurrentReader: Sendable {
    private struct State { weak var reader: Reader? }

    private let state = Mutex(State())

    func reader(of run: Run) -> Reader {
      state.withLock { state in
        if let reader = state.reader { return reader }
        let made = Reader(run)
        state.reader = made
        return made
      }
    }
  }
}
