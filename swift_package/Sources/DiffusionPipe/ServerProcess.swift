#if os(Linux) || os(macOS)
  import DiffusionCore
  import Foundation
  import Synchronization

  /// A child process and two pipes to it. Calls block, so keep them off the main thread. One thread at
  /// a time may send and receive; any thread may kill.
  final class ServerProcess: Sendable {
    private let process: Mutex<Process>
    private let requests: FileHandle
    private let answers: FileHandle
    private let hasEnded = Mutex(false)

    /// - Parameter command: the program, found on the PATH if it has no slash, and its arguments.
    init(_ command: [String]) throws {
      // A server that dies must be an error here, not the end of this process.
      signal(SIGPIPE, SIG_IGN)
      let (child, requests, answers) = (Process(), Pipe(), Pipe())
      child.executableURL = URL(filePath: "/usr/bin/env")
      child.arguments = command
      child.standardInput = requests
      child.standardOutput = answers
      do {
        try child.run()
      } catch {
        throw MatryoshkaError.serverFailed(reason: "\(command.first ?? "") cannot be started (\(error.cause))")
      }
      process = Mutex(child)
      (self.requests, self.answers) = (requests.fileHandleForWriting, answers.fileHandleForReading)
    }

    deinit { end() }

    /// Sends one frame.
    func send(_ frame: [UInt8]) throws {
      do {
        try requests.write(contentsOf: Data(frame))
      } catch {
        throw ended
      }
    }

    /// Kind and payload of the next frame.
    func receive() throws -> (kind: UInt8, payload: [UInt8]) {
      let head = try take(4)
      let length = head.reversed().reduce(0) { $0 << 8 | Int($1) }
      guard (1...Frame.maximum).contains(length) else {
        throw MatryoshkaError.serverFailed(reason: "it sent a frame of \(length) bytes")
      }
      let body = try take(length)
      return (body[0], Array(body[1...]))
    }

    /// Ends the child at once. A caller that waits for its answer gets an error.
    func kill() {
      process.withLock {
        if $0.isRunning { _ = signalled($0.processIdentifier, SIGKILL) }
      }
    }

    /// Ends the child and waits until it is gone.
    func end() {
      let isFirst = hasEnded.withLock { ended in
        defer { ended = true }
        return !ended
      }
      guard isFirst else { return }
      try? requests.close()
      try? answers.close()
      process.withLock { if $0.isRunning { $0.terminate() } }
      for _ in 0..<2000 where isRunning { usleep(1000) }
      kill()
      while isRunning { usleep(1000) }
    }

    private var isRunning: Bool { process.withLock { $0.isRunning } }

    /// The child closed its pipe, so it is about to end, and then says how.
    private var ended: MatryoshkaError {
      for _ in 0..<200 where isRunning { usleep(1000) }
      let how = process.withLock { child -> String in
        if child.isRunning { return "it has closed its pipe" }
        let word = child.terminationReason == .uncaughtSignal ? "by signal" : "with status"
        return "it has ended \(word) \(child.terminationStatus)"
      }
      return .serverFailed(reason: "\(how); its own message says why")
    }

    private func take(_ count: Int) throws -> [UInt8] {
      var bytes: [UInt8] = []
      while bytes.count < count {
        let piece = try? answers.read(upToCount: count - bytes.count)
        guard let piece, !piece.isEmpty else {
          throw ended
        }
        bytes += piece
      }
      return bytes
    }
  }

  /// The C library's `kill`, which the method of that name hides.
  private func signalled(_ process: pid_t, _ number: Int32) -> Int32 { kill(process, number) }
#endif
