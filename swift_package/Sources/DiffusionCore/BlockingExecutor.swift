import Dispatch

/// Runs an actor's work on its own queue, where it may block without delaying others.
package final class BlockingExecutor: SerialExecutor {
  private let queue: DispatchQueue

  /// The queue drains its autorelease pool after every piece of work. By default a queue does so at times
  /// of its own choosing, and what Core ML autoreleases in a long run would pile up until then.
  package init(label: String) {
    queue = DispatchQueue(label: label, autoreleaseFrequency: .workItem)
  }

  package func enqueue(_ job: consuming ExecutorJob) {
    let job = UnownedJob(job)
    queue.async { job.runSynchronously(on: self.asUnownedSerialExecutor()) }
  }

  package func asUnownedSerialExecutor() -> UnownedSerialExecutor {
    UnownedSerialExecutor(ordinary: self)
  }
}
