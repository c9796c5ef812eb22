import Synchronization

/// One use of a pipeline, in the order in which it was asked for. Any thread may end it at once, even
/// before the pipeline has heard of it.
final class Run: Sendable {
  /// What a pipeline is used for.
  enum Kind {
    /// A picture. Another one is refused while it is being made.
    case picture
    /// Loading or releasing. Whatever comes next waits for it.
    case upkeep
  }

  let kind: Kind
  private let state = Mutex(State())

  private struct State {
    var isCancelled = false
    var isDone = false
    var interruption: String?
    var task: Task<Void, Never>?
  }

  init(_ kind: Kind) { self.kind = kind }

  /// Whether the run will end without making more of its picture.
  var isEnding: Bool {
    state.withLock { $0.isCancelled || $0.isDone || $0.interruption != nil }
  }

  /// The reason of an interruption; nil if there was none.
  var interruption: String? { state.withLock { $0.interruption } }

  /// Cancels the run together with the task that does its work.
  func follow(_ task: Task<Void, Never>) {
    let isLate = state.withLock { state in
      state.task = task
      return state.isCancelled
    }
    if isLate { task.cancel() }
  }

  func cancel() {
    let task = state.withLock { state in
      state.isCancelled = true
      return state.task
    }
    task?.cancel()
  }

  func interrupt(_ reason: String) { state.withLock { $0.interruption = $0.interruption ?? reason } }

  /// Says that the result is out, so that the next run may wait instead of being refused.
  func finish() { state.withLock { $0.isDone = true } }

  /// Called between packages, where a run ends if it was cancelled or interrupted.
  func check() throws {
    try Task.checkCancellation()
    let (isCancelled, reason) = state.withLock { ($0.isCancelled, $0.interruption) }
    if isCancelled { throw CancellationError() }
    if let reason { throw Stop(reason: reason) }
  }
}

/// Thrown after an interruption.
struct Stop: Error {
  let reason: String
}
